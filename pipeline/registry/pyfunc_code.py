"""What a registered version holds as its code: MLflow runs this file, nothing is unpickled."""

from mlflow.models import set_model

from pipeline.registry.pyfunc_model import RelevanceModelCode

set_model(RelevanceModelCode())
