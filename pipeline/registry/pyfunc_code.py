"""Code of a registered version: MLflow runs this file and unpickles nothing."""

from mlflow.models import set_model

from pipeline.registry.pyfunc_model import RelevanceModelCode

set_model(RelevanceModelCode())
