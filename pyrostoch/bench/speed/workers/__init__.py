"""Processes that make steps and time them, one route each.

This folder runs under an interpreter that need not have pyrostoch: it imports nothing of the package but, in `own`,
the package itself.

| file | routes |
| --- | --- |
| `plain` | torch without randomness, and local reparameterization written by hand |
| `stock` | Pyro as it comes |
| `layers` | libraries of Bayesian torch layers |
| `jitted` | NumPyro |
| `handled` | TyXe |
| `own` | pyrostoch: steps and averages |
"""
