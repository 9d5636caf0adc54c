"""Training over data holders who keep their clean examples, and send weights or obfuscated examples, on Flower.

| file | idea |
| --- | --- |
| `partition` | which examples each holder has, in trials with one data set |
| `weights` | the state of model and guide, how it is checked, and its mean |
| `holder` | a data holder: what it trains, and what it agrees to send |
| `rounds` | the server's side, whatever carries the messages |
| `flower` | both ends on Flower |
| `report` | who answered in which round, and how good the network was |

Flower is not needed to import this package.
"""

from pyrostoch.federated.flower import client_app, serve
from pyrostoch.federated.holder import Holder, Obfuscated
from pyrostoch.federated.partition import partition
from pyrostoch.federated.report import Federated, FederatedRound, QuorumError
from pyrostoch.federated.weights import average, load_weights, weights_of

__all__ = [
    "Federated",
    "FederatedRound",
    "Holder",
    "Obfuscated",
    "QuorumError",
    "average",
    "client_app",
    "load_weights",
    "partition",
    "serve",
    "weights_of",
]
