"""Language models: anything that implements `twistlm.types.BaseLM`."""
