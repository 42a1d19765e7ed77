"""Who will leave: CSV or LIBSVM in, probabilities out, by the framework's defaults."""
import os

import xgboost


def model_fn(model_dir):
    model = xgboost.Booster()
    model.load_model(os.path.join(model_dir, "xgboost-model"))
    return model
