"""Predictions of a Bayesian network, their scores under several modes, and its ELBO split into terms."""

from __future__ import annotations

from pyrostoch.prediction.compare import Comparison, ComparisonRow, accuracy_by_samples, compare
from pyrostoch.prediction.decompose import Decomposition, SiteRow, decompose
from pyrostoch.prediction.homeostasis import Homeostasis, NeuronStatistics, noise_scaled
from pyrostoch.prediction.moments_error import LayerError, MomentsError, moments_error
from pyrostoch.prediction.noise import NoiseRow, NoiseSummary, activation_noise
from pyrostoch.prediction.output_draws import Draws, draws
from pyrostoch.prediction.outputs import outputs
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.prediction import Prediction
from pyrostoch.prediction.predictor import Predictor
from pyrostoch.prediction.prior_predictive import PriorPredictive, prior_predictive
from pyrostoch.prediction.saved import SavedPrediction

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Decomposition",
    "Draws",
    "Homeostasis",
    "LayerError",
    "MomentsError",
    "NeuronStatistics",
    "NoiseRow",
    "NoiseSummary",
    "Prediction",
    "Predictor",
    "PriorPredictive",
    "SavedPrediction",
    "SiteRow",
    "accuracy_by_samples",
    "activation_noise",
    "compare",
    "decompose",
    "draws",
    "moments_error",
    "noise_scaled",
    "outputs",
    "predict",
    "prior_predictive",
]
