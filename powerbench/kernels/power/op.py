MAX_DEGREE=4
def normalized_by_default(p): return p%2==0
def power_attention(q,k,v,log_g=None,*,p=2,chunk_size=None,d_tile=None,scale=None,normalize=None,initial_state=None,return_state=False,backend="auto"):
    from powerbench.kernels.power.torch_backend import torch_forward
    if backend=="triton":
        from powerbench.kernels.power.triton_backend import triton_forward as torch_forward
    y,s=torch_forward(q,k,v,log_g,p=p,chunk_size=chunk_size,d_tile=d_tile,scale=q.shape[-1]**-.5 if scale is None else scale,normalize=normalized_by_default(p) if normalize is None else normalize,initial_state=initial_state,return_state=return_state)
    return (y,s) if return_state else y
