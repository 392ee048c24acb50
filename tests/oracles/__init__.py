"""Reference implementations that the tests compare losslab with.

Nothing here imports losslab or torch. Each function is the printed formula, written as plainly as
possible, in float64 or better, one number at a time: obvious, never fast.

    arithmetic   exp, log, sigmoid, softplus of one real or complex number
    logodds      the true class's log-odds, its gradient and Hessian
    losses       every loss that depends on the true-class probability alone
    rowwise      losses that need more of the row: Brier, complement entropy, MPCE, class centres
    margins      changes to the logits, and class weights
    reduction    what PyTorch does with targets, weights, ignored positions and means
    derivatives  numerical derivatives
    volume       V = ∫ |∂L/∂z_y| dp
"""
