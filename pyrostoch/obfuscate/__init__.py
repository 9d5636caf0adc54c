"""Examples that are obfuscated before they leave their owner: what is sent, what it tells, and how to learn from it.

A `Client` is the part of a network that runs at the owner's; `audit` attacks what it sends, `rate_bound` and
`fisher_bound` bound it. `progressive` trains a network on few clean examples and many obfuscated ones.
"""

from pyrostoch.obfuscate.audit import audit
from pyrostoch.obfuscate.audit_record import AttackResult, Audit, Strength
from pyrostoch.obfuscate.bounds import RateBound, fisher_bound, rate_bound
from pyrostoch.obfuscate.bypass import bypassed
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.contrast import contrast_bound
from pyrostoch.obfuscate.image_priors import GaussianPrior, GenerativePrior
from pyrostoch.obfuscate.inversion import invert
from pyrostoch.obfuscate.keyed import KeyedClient
from pyrostoch.obfuscate.mechanism import gaussian_delta, gaussian_epsilon
from pyrostoch.obfuscate.pictures import Pictures
from pyrostoch.obfuscate.progressive import progressive
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.obfuscate.sender import Sender
from pyrostoch.obfuscate.stages import Progressive, ProgressiveStage
from pyrostoch.obfuscate.work import multiplications

__all__ = [
    "AttackResult",
    "Audit",
    "Client",
    "GaussianPrior",
    "GenerativePrior",
    "KeyedClient",
    "Pictures",
    "Progressive",
    "ProgressiveStage",
    "RateBound",
    "Screening",
    "Sender",
    "Strength",
    "audit",
    "bypassed",
    "contrast_bound",
    "fisher_bound",
    "gaussian_delta",
    "gaussian_epsilon",
    "invert",
    "multiplications",
    "progressive",
    "rate_bound",
]
