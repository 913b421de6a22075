"""Images of the three roles and of the page: the Dockerfile, the compose file, the lock, and what runs inside them."""
