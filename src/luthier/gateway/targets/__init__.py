"""What answers a request: models that come and go, routes over them, and what is done when one fails."""
