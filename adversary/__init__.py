"""The adversary: what can be made of tapped features, and only of them."""
