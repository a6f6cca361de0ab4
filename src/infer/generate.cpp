#include "xlstm/generate.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>

#include "core/check.hpp"
#include "infer/sampler.hpp"
#include "infer/text_stream.hpp"
#include "model/drawing_steps.hpp"
#include "model/model_impl.hpp"

namespace xlstm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One sequence while it is being continued.
struct Sequence {
  Sequence(Model& model, const GenerateOptions& options)
      : sampler(options.sampler, model.sampleable_ids()), text(model.tokenizer(), options.stop) {}

  State* state = nullptr;
  infer::Sampler sampler;
  infer::TextStream text;
  Generation result;
  std::int32_t token = 0;  // sampled last
  bool unread = false;     // the model has not read `token` yet
  std::int64_t row = 0;    // of what the last step gave
  bool active = true;
};

class Writer {
 public:
  Writer(Model& model, const GenerateOptions& options, const GenerateCallbacks& callbacks)
      : model_(model), options_(options), callbacks_(callbacks) {
    XLSTM_CHECK(model.config().vocab_size > 0, unsupported,
                "generate: expected a model with a vocabulary, found a block stack alone "
                "(vocab_size 0)");
    XLSTM_CHECK(options.max_tokens >= -1, invalid_argument,
                "generate: max_tokens: expected -1 or more, found {}", options.max_tokens);
    XLSTM_CHECK(options.logprobs >= -1, invalid_argument,
                "generate: logprobs: expected -1 or more, found {}", options.logprobs);
  }

  void add(State& state, std::span<const std::int32_t> prompt) {
    Sequence& s = sequences_.emplace_back(model_, options_);
    s.state = &state;
    s.result.prompt_ids.assign(prompt.begin(), prompt.end());
    if (prompt.empty() && state.last_logits().empty()) {
      XLSTM_CHECK(model_.bos_id() >= 0, invalid_argument,
                  "generate: the prompt is empty, and the model has no BOS token to begin with");
      s.result.prompt_ids.push_back(model_.bos_id());
    }
    for (std::size_t i = 0; i < prompt.size(); ++i)
      XLSTM_CHECK(prompt[i] >= 0 && prompt[i] < model_.config().vocab_size, invalid_argument,
                  "generate: prompt token {}: expected an id in [0, {}), found {}", i,
                  model_.config().vocab_size, prompt[i]);
    for (const std::int32_t id : s.result.prompt_ids) s.sampler.accept(id);
    // The usual lengths never grow the list while generating.
    const auto reserve = std::clamp<std::int64_t>(options_.max_tokens, 0, 65536);
    s.result.ids.reserve(static_cast<std::size_t>(reserve));
  }

  // @param keep_state  read the last token too, so that the states hold the whole text
  void run(bool keep_state) {
    read_prompts();
    keeps_states_ = keep_state;
    write();
    if (keep_state)
      for (Sequence& s : sequences_) {
        if (s.unread)
          model_.eval(*s.state, std::span(&s.token, 1));
        else
          model_.impl().fetch_logits(*s.state);
      }
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      if (sequences_[i].active) finish(i, FinishReason::length);
      sequences_[i].result.text = sequences_[i].text.text();
    }
  }

  std::vector<Generation> take() {
    std::vector<Generation> results;
    for (Sequence& s : sequences_) results.push_back(std::move(s.result));
    return results;
  }

 private:
  bool should_stop() { return callbacks_.should_stop && callbacks_.should_stop(); }

  // A long prompt is read in the model's own slices, so that the bits are those of one call. Where
  // sequences share passes, so do prompts.
  void read_prompts() {
    const auto slice = static_cast<std::size_t>(model_.impl().limits.slice);
    const auto most = static_cast<std::size_t>(model_.impl().limits.shared_tokens);
    for (const Sequence& s : sequences_) prompt_tokens_ += s.result.prompt_ids.size();
    for (std::size_t first = 0; first < sequences_.size() && !stopped_;) {
      std::size_t count = 1, tokens = sequences_[first].result.prompt_ids.size();
      while (first + count < sequences_.size() &&
             tokens + sequences_[first + count].result.prompt_ids.size() <= most)
        tokens += sequences_[first + count++].result.prompt_ids.size();
      if (count == 1)
        read_prompt(sequences_[first], slice);
      else
        read_together(first, count);
      first += count;
    }
  }

  void read_prompt(Sequence& s, std::size_t slice) {
    const auto start = Clock::now();
    const std::span<const std::int32_t> ids = s.result.prompt_ids;
    for (std::size_t begin = 0; begin < ids.size() && !stopped_; begin += slice) {
      const std::size_t n = std::min(slice, ids.size() - begin);
      const SequenceInput input{.ids = ids.subspan(begin, n), .state = s.state};
      if (begin + n < ids.size())
        model_.forward(std::span(&input, 1), Logits::none, {});
      else
        model_.eval(*s.state, input.ids);
      s.result.timings.prompt_tokens += static_cast<std::int64_t>(n);
      tell_prompt(n);
      if (begin + n < ids.size()) stopped_ = should_stop();
    }
    s.result.timings.prompt_s = seconds_since(start);
  }

  void read_together(std::size_t first, std::size_t count) {
    const auto start = Clock::now();
    std::vector<SequenceInput> batch;
    std::vector<float> logits(count * static_cast<std::size_t>(model_.config().vocab_size));
    std::size_t tokens = 0;
    for (std::size_t i = first; i < first + count; ++i) {
      Sequence& s = sequences_[i];
      if (s.result.prompt_ids.empty()) continue;  // the state has been read to where it goes on
      batch.push_back({.ids = s.result.prompt_ids, .state = s.state});
      tokens += s.result.prompt_ids.size();
    }
    model_.forward(batch, Logits::last, logits);
    for (std::size_t i = first; i < first + count; ++i) {
      Timings& t = sequences_[i].result.timings;
      t.prompt_tokens = static_cast<std::int64_t>(sequences_[i].result.prompt_ids.size());
      t.prompt_s = seconds_since(start);
    }
    tell_prompt(tokens);
    stopped_ = should_stop();
  }

  void tell_prompt(std::size_t tokens) {
    prompt_done_ += tokens;
    if (callbacks_.on_prompt)
      callbacks_.on_prompt(static_cast<std::int64_t>(prompt_done_),
                           static_cast<std::int64_t>(prompt_tokens_));
  }

  void write() {
    best_count_ = best_needed();
    prepare_reading();
    const auto start = Clock::now();
    stopped_ = stopped_ || should_stop();
    for (std::int64_t step = 0; step != options_.max_tokens && !stopped_; ++step) {
      batch_.clear();
      for (std::size_t i = 0; i < sequences_.size(); ++i) {
        Sequence& s = sequences_[i];
        if (!s.active) continue;
        choose(i);
        s.result.timings.generate_s = seconds_since(start);
        if (s.active) batch_.push_back({.ids = std::span(&s.token, 1), .state = s.state});
      }
      if (batch_.empty() || step + 1 == options_.max_tokens) break;
      stopped_ = should_stop();
      if (steps_)
        read_ahead(step + 2 == options_.max_tokens);
      else if (!stopped_)
        read();
    }
    if (!steps_) return;
    while (steps_->under_way() > 0) wait_for_step();
    steps_.reset();
  }

  void prepare_reading() {
    batch_.reserve(sequences_.size());
    if (best_count_ > 0)
      steps_ = model::DrawingSteps::make(model_, sequences_.size(), best_count_,
                                         keeps_states_ && !options_.ignore_eos);
    if (steps_) return drawing_.reserve(sequences_.size());
    const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
    if (best_count_ == 0 && sequences_.size() > 1) logits_.resize(sequences_.size() * vocab);
    best_.resize(sequences_.size() * static_cast<std::size_t>(best_count_));
  }

  // Reads the tokens chosen last.
  void read() {
    if (best_count_ > 0)
      model_.forward_best(batch_, best_count_, best_);
    else if (batch_.size() == 1)
      model_.eval(*batch_[0].state, batch_[0].ids);
    else
      model_.forward(batch_, Logits::last, logits_);
    std::int64_t row = 0;
    for (Sequence& s : sequences_) {
      if (!s.active) continue;
      s.unread = false;
      s.row = row++;
    }
  }

  // The same on a device that draws the next tokens itself. It reads those, too, while this thread
  // looks at them; so whether they are wanted is asked before they are known.
  // @param is_last  no token is wanted after the next
  void read_ahead(bool is_last) {
    if (steps_->under_way() == 0) {
      if (stopped_) return;
      drawing_.clear();
      for (Sequence& s : sequences_) {
        if (!s.active) continue;
        s.row = static_cast<std::int64_t>(drawing_.size());
        drawing_.push_back({.state = s.state, .token = s.token, .draw = s.sampler.draw()});
      }
      steps_->begin(drawing_);
    }
    // Those that have ended leave the batch before the next step.
    if (!is_last && !stopped_ && batch_.size() == drawing_.size()) steps_->go_on();
    wait_for_step();
  }

  void wait_for_step() {
    drawn_ = steps_->wait();
    for (Sequence& s : sequences_) s.unread = false;
  }

  // On a device that would have to send them, sampling does without most logits where it can.
  std::int64_t best_needed() const {
    std::int64_t most = 0;
    if (model_.impl().context.device().is_cpu() || options_.logprobs >= 0) return 0;
    for (const Sequence& s : sequences_) {
      const std::int64_t needed = s.sampler.best_needed();
      if (needed == 0 || needed > model_.most_best()) return 0;
      most = std::max(most, needed);
    }
    return most;
  }

  // Samples the next token of sequence i, and ends it at the end of the text or a stop string.
  void choose(std::size_t i) {
    Sequence& s = sequences_[i];
    const std::span<const float> logits = s.state->last_logits();
    const auto row = static_cast<std::size_t>(s.row), count = static_cast<std::size_t>(best_count_);
    if (!logits.empty())
      s.token = s.sampler.sample(logits);
    else if (steps_)
      s.token = s.sampler.take_drawn(drawn_[row]);
    else
      s.token = s.sampler.sample_best(std::span(best_).subspan(row * count, count));
    const std::vector<std::int32_t>& eos = model_.eos_ids();
    if (!options_.ignore_eos && std::ranges::find(eos, s.token) != eos.end()) {
      finish(i, FinishReason::stop);
      return;
    }
    if (options_.logprobs >= 0)
      s.result.logprobs.push_back(infer::log_probabilities(logits, s.token, options_.logprobs));
    s.sampler.accept(s.token);
    s.result.ids.push_back(s.token);
    ++s.result.timings.generated_tokens;
    s.unread = true;
    if (s.text.push(s.token))
      finish(i, FinishReason::stop);
    else
      emit(i);
  }

  void finish(std::size_t i, FinishReason reason) {
    Sequence& s = sequences_[i];
    s.active = false;
    s.result.finish_reason = s.text.finish() ? FinishReason::stop : reason;
    emit(i);
  }

  void emit(std::size_t i) {
    const std::string_view text = sequences_[i].text.take();
    if (!text.empty() && callbacks_.on_text) callbacks_.on_text(i, text);
  }

  Model& model_;
  const GenerateOptions& options_;
  const GenerateCallbacks& callbacks_;
  std::deque<Sequence> sequences_;
  std::vector<SequenceInput> batch_;  // the active sequences
  bool keeps_states_ = false;
  // What the next tokens are chosen from: all logits of several sequences; the best of every active
  // sequence, where the others stay on a device; or those that the device has drawn.
  std::vector<float> logits_;
  std::vector<Candidate> best_;
  std::int64_t best_count_ = 0;
  std::unique_ptr<model::DrawingSteps> steps_;
  std::vector<model::DrawingSequence> drawing_;  // those of steps_
  std::span<const Candidate> drawn_;
  std::size_t prompt_done_ = 0, prompt_tokens_ = 0;
  bool stopped_ = false;
};

}  // namespace

std::vector<Generation> generate(Model& model, std::span<const std::vector<std::int32_t>> prompts,
                                 const GenerateOptions& options,
                                 const GenerateCallbacks& callbacks) {
  std::vector<State> states;
  states.reserve(prompts.size());
  Writer writer(model, options, callbacks);
  for (const std::vector<std::int32_t>& prompt : prompts)
    writer.add(states.emplace_back(model.make_state()), prompt);
  writer.run(false);
  return writer.take();
}

Generation generate(Model& model, State& state, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options, const GenerateCallbacks& callbacks) {
  Writer writer(model, options, callbacks);
  writer.add(state, prompt);
  writer.run(true);
  return std::move(writer.take().front());
}

}  // namespace xlstm
