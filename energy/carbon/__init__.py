"""From joules to carbon: intensities by place and hour, embodied carbon, the formula of the LLaMA paper."""
