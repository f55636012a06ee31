"""The wire protocol on the client's side, without input or output: events, responses, retries."""
