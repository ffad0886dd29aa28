"""Tables, pictures and pages. They read results and compute none."""
