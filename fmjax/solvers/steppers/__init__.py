"""Fixed-step methods: one step of an ODE, of an SDE, and of diffusion samplers."""
