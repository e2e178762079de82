"""Policy and PRM as Ray Serve deployments, their engines, and the clients that call them."""
