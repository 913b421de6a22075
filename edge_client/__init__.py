"""The edge: capture → preprocess → F1 → defence → encode → stream."""
