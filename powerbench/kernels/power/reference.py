import torch
def attention_rows(q,k,v,log_g,rows,*,p,scale,normalize):
    q,k,v=(t.double() for t in (q,k,v)); B,T,Hk,d=k.shape
    qs=q[:,rows].reshape(B,len(rows),Hk,-1,d)
    s=torch.einsum("brhgd,bthd->bhgrt",qs,k)*(d**-.5 if scale is None else scale)
    fut=torch.arange(T,device=q.device)>rows[:,None]
    w=(s**p).masked_fill(fut,0)
    if log_g is not None:
        G=log_g.double().cumsum(1).transpose(1,2)
        w=w*(G[:,:,rows,None]-G[:,:,None]).masked_fill(fut,-torch.inf).exp()[:,:,None]
    y=torch.einsum("bhgrt,bthe->brhge",w,v)
    if normalize: y=y/w.sum(-1).permute(0,3,1,2)[...,None]
    return y.reshape(B,len(rows),-1,v.shape[-1])
