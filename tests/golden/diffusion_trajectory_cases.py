"""Calls for the golden values of losses on trajectories."""

import diffusion_consistency_cases
import diffusion_continuous_cases
import diffusion_flow_cases
import diffusion_teacher_cases

CASES = {
  **diffusion_consistency_cases.CASES,
  **diffusion_continuous_cases.CASES,
  **diffusion_flow_cases.CASES,
  **diffusion_teacher_cases.CASES,
}
