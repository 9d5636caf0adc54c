"""Processes that make and time training steps, each with one implementation.

This folder also runs under an interpreter that does not have pyrostoch: only `pyrostoch_worker` imports the package.

| file | implementations |
| --- | --- |
| `torch_worker` | torch without randomness, and local reparameterization written by hand |
| `pyro_worker` | Pyro with AutoNormal |
| `layers_worker` | bayesian-torch and torchbnn, libraries of Bayesian torch layers |
| `numpyro_worker` | NumPyro |
| `tyxe_worker` | TyXe |
| `pyrostoch_worker` | pyrostoch: steps and averaged predictions |

`task` is what a process is asked to do, `common` the networks, batches and steps that those with torch share, and
`__main__` the process itself.
"""
