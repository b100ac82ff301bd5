def choose(p, head_dim, value_dim, seqlen, device_type, chunk_size=None, d_tile=None):
    t={1:head_dim,2:16,3:8,4:4}[p]
    while head_dim%t: t//=2
    c={1:128,2:1024,3:2048,4:4096}[p] if device_type=="cuda" else {1:256,2:1024,3:2048,4:4096}[p]
    return chunk_size or c, d_tile or t
