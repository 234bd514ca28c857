"""The algebra of diffusion: schedules, networks seen through them, samplers, exact teachers.

A noised image is x_t = alpha_t x0 + sigma_t eps. Every schedule is a path of two numbers, a scale
sqrt(sigma^2 + alpha^2 sigma_data^2) and an angle atan2(sigma, alpha sigma_data): two schedules that
pass the same angle see the same image at two scales. So one network serves all of them.
"""
