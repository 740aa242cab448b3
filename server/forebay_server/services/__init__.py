"""One module per gRPC service: what each call means. Translates between the contract and the domain."""
