"""A population that moves as a swarm says."""

import torch

from modelswarms_fast.weights.population import Population


def population_of(experts, swarm, config, placement=None):
    """On the CPU, with the particles of the swarm where they begin."""
    draws = {"randomness": swarm.config.randomness, "space": swarm.config.space, "seed": swarm.config.seed}
    return Population(experts, swarm.initial_positions(), config, torch.device("cpu"), placement=placement, **draws)


def start(population, swarm):
    population.start(swarm.initial_velocities(swarm.initial_positions()))


def move(population, moves):
    population.update(moves.restarts, moves.coefficients, moves.step_length, moves.iteration)


def promote(population, update):
    population.promote(update.improved, update.global_best, update.global_worst)
