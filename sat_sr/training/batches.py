import torch
class Batches:
    def __init__(self, settings, seed, rank, world, micro, device, position):
        self.n = position["n"] if position else 0
        self.s, self.rank, self.micro, self.seed = settings, rank, micro, seed
    def position(self): return {"n": self.n}
    def __next__(self):
        g = torch.Generator().manual_seed(self.seed*1000003+self.rank*10007+self.n); self.n += 1
        S = self.s.model.image_size
        t = torch.randn(self.micro,3,S,S,generator=g).clamp(-1,1)
        lr = torch.nn.functional.avg_pool2d(t,4)
        up = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", antialias=True, align_corners=False).clamp(-1,1)
        return {"target": t, "lr": lr, "lr_upsampled": up}, [f"k{self.rank}_{self.n}"]*self.micro
def validation_batches(settings, seed, rank, world, micro, device):
    b = Batches(settings, seed+1, rank, world, micro, device, None)
    return [next(b)[0] for _ in range(settings.eval_iters)]
