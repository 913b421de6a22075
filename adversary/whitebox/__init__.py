"""White-box attacks: what is optimised (variables) × what is asked of it (terms) × how (solvers).

To add one, write one small class in one of the three modules; the recipes in ``recipes`` put them together.
"""
