#pragma once
// Steps of one token whose next tokens the device draws itself, so that it need not wait for the
// host between them: while the host looks at the tokens of one step, the next runs already.

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "model/step_inputs.hpp"
#include "ops/draw.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// Memory of such steps, which a model keeps: graphs hold its addresses.
struct DrawingMemory {
  bool busy = false;  ///< somebody's steps are under way
  StepInputs inputs;
  Buffer ends;   ///< ids that end a text
  Buffer spare;  ///< a record that takes what is read after the end of a text
  /// Steps take turns, so that what one has left is there while the next runs.
  struct Turn {
    Buffer logits;               ///< [sequences, vocab]
    Buffer drawn;                ///< pinned: values [sequences], then ids [sequences]
    std::uint64_t pass = 0;      ///< that left them
    std::shared_ptr<void> done;  ///< event
  };
  std::array<Turn, 2> turns;
};

/// A sequence that goes on in such steps.
struct DrawingSequence {
  State* state = nullptr;
  std::int32_t token = 0;  ///< that the first step reads
  ops::Draw draw;          ///< without after_end
};

/// The steps of some sequences, on a CUDA device. Until they end, nobody else may touch the states.
class DrawingSteps {
 public:
  /// Null unless there can be such steps: on a CUDA device, so many sequences share a pass, no
  /// others of this model are under way, and there is memory for what they need.
  /// @param candidates  most of any sequence's draw, at most Model::most_best()
  /// @param keeps_state  a state does not take up an id of Model::eos_ids() that was drawn for it,
  ///                     with one sequence alone; takes the memory of one more
  static std::unique_ptr<DrawingSteps> make(Model& model, std::size_t sequences,
                                            std::int64_t candidates, bool keeps_state);
  /// Waits for what is under way.
  ~DrawingSteps();
  DrawingSteps(const DrawingSteps&) = delete;
  DrawingSteps& operator=(const DrawingSteps&) = delete;

  /// Begins a step that reads the sequences' tokens; none is under way.
  /// @throws Error as Model::forward() does
  void begin(std::span<const DrawingSequence> sequences);
  /// Begins another for the same sequences, with the tokens that the last one draws.
  void go_on();
  /// Steps that were begun and not waited for: 0, 1 or 2.
  int under_way() const noexcept { return under_way_; }
  /// Waits for the first of them. @return the token drawn for each sequence; not finite where one
  /// of the sequence's logits is not; until the next wait()
  std::span<const Candidate> wait();

 private:
  DrawingSteps(Model& model, std::int64_t candidates, bool keeps_state);
  void queue();
  bool ends_text(const Candidate& drawn) const;
  void finish() noexcept;

  Model& model_;
  std::int64_t candidates_;
  bool keeps_state_;
  int under_way_ = 0;
  std::size_t turn_ = 0;  ///< of the next step
  std::vector<SequenceInput> sequences_;
  std::vector<Candidate> drawn_;  ///< by the last step that was waited for
  bool read_drawn_ = false;       ///< the first step under way reads them
};

}  // namespace xlstm::model
