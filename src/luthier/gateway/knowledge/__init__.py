"""Knowledge bases over HTTP: which are served, who sees what of them, and the vector stores of the OpenAI wire format."""
