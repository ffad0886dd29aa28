"""Tables and pictures. They read results and compute none."""
