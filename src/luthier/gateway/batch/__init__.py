"""Files of requests that are answered when there is time."""
