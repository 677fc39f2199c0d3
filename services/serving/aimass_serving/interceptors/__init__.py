"""What happens around every RPC: telemetry, log, errors, authentication, admission.

Each is a layer: `async def layer(call, proceed)`. `layering` alone knows gRPC's four kinds of RPC.
"""
