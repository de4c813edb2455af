"""The network, and nothing that decides which part of a picture it sees when.

inf_dit.py              InfDiT, the whole of it as a SAT model      sat_import.py        what is taken from SAT
adaln.py                one layer: block_attention.py (which blocks attend to which), attention_kernels.py (the ways to
                        compute that), stock.py (PyTorch's own), lr_cross_attention.py in the first layer, and the MLP
embeddings.py           time, CLIP embedding and pixels in; pixels out
rope.py, linear.py      rotary positions; Linears with what can be fused into them
layout.py, counts.py    names and shapes of the weights; parameters and operations; light, neither needs a network
clip.py                 the CLIP image tower that conditions the network
"""
