"""Figures and a self-contained HTML report from the record of a run (`results.json`)."""

from __future__ import annotations

from pyrostoch.report.audit_pictures import audit_pictures
from pyrostoch.report.fitted import write_report
from pyrostoch.report.html import render, write
from pyrostoch.report.plots import accuracy_by_samples, posterior, reliability, training
from pyrostoch.report.prior_draws import prior_draws

__all__ = [
    "accuracy_by_samples",
    "audit_pictures",
    "posterior",
    "prior_draws",
    "reliability",
    "render",
    "training",
    "write",
    "write_report",
]
