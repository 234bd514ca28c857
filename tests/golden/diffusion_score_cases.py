"""Calls for the golden values of score distillation, adversarial and preference losses."""

import diffusion_adversarial_cases
import diffusion_matching_cases
import diffusion_noise_cases

CASES = {
  **diffusion_adversarial_cases.CASES,
  **diffusion_matching_cases.CASES,
  **diffusion_noise_cases.CASES,
}
