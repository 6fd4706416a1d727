"""Tools around the method: data in, results out."""
