"""One launch for many tensors: what an optimizer step does on CUDA, in Triton.

On an accelerator the eager code spends a step on launching small operations, a dozen per factor and layer. Here each
of them is one pass over memory for all layers of a shape:

    moving_layers   all of the below, for some layers of one shape            replaces `moving_layers`
    moving          the rule on A and B, and what the weight update needs     replaces `moving`
    weight_update   W <- decay W + s P, stochastically rounded                replaces part of `weight_update`
    exchange        switched vectors and candidates change places             replaces loops of `layer_group`
    ordinary        AdamW where something is stored in bfloat16               replaces a loop of `ordinary`

The eager code is the reference that every kernel is tested against. Kernels see tensors through tables of addresses
(`tables`), so that the number of launches does not depend on the number of layers. The random bits are those of
`draws`, key by key, so a run may change between kernels and eager code and rounds as before.

`availability` decides where kernels run. Everything that imports triton lies in `kernels.jit`, which is imported only
inside functions: the package works without triton.
"""
