"""What the method says about noise, apart from any network, device or file.

edm.py         preconditioning, noise levels of sampling and of training, the denoiser D(x; sigma), the loss
samplers.py    from a denoiser and noise levels to a picture: heun, euler, dpmpp_2m, unipc
resize.py      the one resize, and the two conditions that are made with it
"""
