"""Any loss of losslab in the trainers that people have, a file each.

    lightning.py      schedules advance with Lightning's training
    transformers.py   Hugging Face's Trainer: compute_loss_func, and schedules
    boosting.py       LightGBM and XGBoost: exact gradients and Hessians
    sklearn.py        a classifier for scikit-learn's pipelines and searches
    adapters.py       the signatures that fairseq and torchtune call

Each imports its library only when it is imported itself; plain PyTorch, `torch.compile`, DDP,
autocast, timm and skorch take the modules as they are.
"""
