"""KRR-ST, self-supervised: no labels of classes; images with vectors that pretrain a network.

Paper: Lee, Lee and Hwang, Self-Supervised Dataset Distillation for Transfer Learning
  (arXiv:2310.06511), where CIFAR-100 and others are distilled; not Fashion-MNIST. The authors'
  rates, pool and batch; the targets are a smaller network's.
Run:   python -m distill_jax.train --config experiments/dataset/krr_st.py[:data=fashion,ipc=10]
  --workdir runs/krr_st
Takes: docs/datasets.md.
"""

from experiments.dataset import common


def get_config(arg=None):
  method = dict(name="dataset.krr_st", ridge=1e-6, network_lr=0.1, network_decay=1e-3)
  config = common.base(arg, method)
  config.method.pool = 10  # networks
  config.method.most = 1000  # updates of a network
  config.method.targets = 1024  # real images of a step
  config.method.target_steps = 20_000  # of training the self-supervised network
  config.method.target_batch = 256
  config.method.target_lr = 1e-3
  config.method.projection = 512  # outputs of its projector
  config.evals = ("probe",)
  config.optim.name = "adamw"
  config.optim.lr = 1e-3
  config.optim.schedule = "linear"
  config.optim.final = 1e-3
  config.optim.b1, config.optim.b2 = 0.9, 0.999
  config.steps = 160_000
  if config.arg.data == "digits":
    config.method.most = 100
    config.method.targets = 256
    config.method.target_steps = 300
    config.method.projection = 64
    config.optim.lr = 0.02
    config.steps = 300
  if config.arg.smoke:
    config.method.pool = 3
    config.method.targets = 32
    config.method.target_steps = 2
    config.method.target_batch = 16
  return common.finish(config)
