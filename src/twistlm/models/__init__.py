"""Language models: anything that implements `twistlm.models.base.BaseLM`."""
