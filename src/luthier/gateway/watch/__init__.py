"""What a server lets its operators see: metrics, spans and traces."""
