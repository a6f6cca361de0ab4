#pragma once
// A training run, from its configuration to the model's directory.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "train/communicator.hpp"
#include "train/config.hpp"

namespace xlstm::train {

struct StepReport {
  std::int64_t step = 0, steps = 0;  ///< from 1 to all
  double loss = 0;                   ///< mean over the targets of the step, natural logarithm
  double lr = 0, gradient_norm = 0;  ///< the norm before clipping
  double tokens_per_second = 0, percent_of_peak = 0;
  double seconds_left = 0;
};

struct ValidationReport {
  std::int64_t step = 0;
  double loss = 0;
  double bits_per_byte = 0;    ///< 0 where there is no text
  double accuracy = 0;         ///< share of the targets with the largest logit
  double scaled_accuracy = 0;  ///< 0: a guess, 1: all right; for tasks
  bool best = false;
};

struct TrainResult {
  std::int64_t step = 0;    ///< the last one
  std::int64_t tokens = 0;  ///< of this process's run, all processes together
  double loss = 0;          ///< of the last step
  bool validated = false;
  ValidationReport validation, best;  ///< the last one, and the one with the smallest loss
  double seconds = 0;
  bool interrupted = false;  ///< asked to stop; `run.resume` goes on
  std::filesystem::path model;
};

/// What train() tells while it works, on process 0. Every member may be empty.
struct TrainCallbacks {
  std::function<void(const StepReport&)> on_step;
  std::function<void(const ValidationReport&)> on_validation;
  std::function<void(std::int64_t step, const std::string& text)> on_sample;
  std::function<void(const std::string& text)> on_message;
  std::function<bool()> should_stop;  ///< asked after every step
};

/// Runs to the end, to `run.stop_at`, or until asked to stop; a checkpoint is written then.
/// Everything is a function of the configuration and the step, so a resumed run gives the bits of
/// one that was not interrupted.
/// @throws Error naming key or file before any long work; naming step and block when a number is
///         no longer finite
TrainResult train(const TrainConfig& config, Communicator& processes,
                  const TrainCallbacks& callbacks);

/// What a run of this configuration would need, without running it.
struct TrainPlan {
  std::int64_t parameters = 0;
  std::int64_t trained = 0;            ///< of an adapter, or all
  std::int64_t tokens_per_step = 0;    ///< of all processes
  std::uint64_t parameter_bytes = 0;   ///< weights, gradients, moments
  std::uint64_t activation_bytes = 0;  ///< of one pass
  double flops_per_token = 0;
};
TrainPlan plan(const TrainConfig& config);

}  // namespace xlstm::train
