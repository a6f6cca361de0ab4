// What the mLSTM cell saves for a backward pass, on every device: l and m of every token and the
// states at borders, beside the oracle in double.

#include "ops/mlstm_saved.hpp"

namespace xlstm::ops::test {
namespace {

TEST(MlstmSaved, MatchesTheOracleInEveryRegime) {
  for_each_isa([] {
    for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (const Regime regime : kRegimes) {
        SCOPED_TRACE(to_string(regime));
        Errors l, m, c, n;
        for (const std::int64_t chunk : {1, 7, 32, 64}) {
          MlstmCall call({2, 20, 37}, {300, 1, 129, 128, 2}, gate, 1, DType::f32, regime);
          call.has_record[2] = call.has_record[4] = false;
          call.chunk = chunk;
          call.border = 128;
          call.threads = 2;
          call.run();
          expect_others_untouched(call);
          for (std::size_t s = 0; s < call.initial.size(); ++s) {
            const auto got = saved_parts(call, s), want = expected_parts<double>(call, s);
            const auto naive = expected_parts<float>(call, s);
            for (std::size_t p = 0; p < got.size(); ++p) {
              const std::string& what = got[p].what;
              (what == "l"   ? l
               : what == "C" ? c
               : what == "n" ? n
                             : m)
                  .add(got[p].values, want[p].values, naive[p].values);
            }
          }
          if (!test_device().is_cpu()) break;  // which has chunks of its own
        }
        l.expect_at_most_twice_naive("l");
        m.expect_at_most_twice_naive("m");
        c.expect_at_most_twice_naive("C");
        n.expect_at_most_twice_naive("n");
      }
  });
}

// One token's sequences, whole stretches, and several distances of borders.
TEST(MlstmSaved, HasEveryBorderAtEveryDistance) {
  for (const std::int64_t border : {128, 256, 384, 1024})
    for (const MlstmShape shape :
         {MlstmShape{1, 1, 1}, MlstmShape{3, 5, 7}, MlstmShape{1, 17, 300}}) {
      MlstmCall call(shape, {1, 128, 700, 1, 127, 256, 3}, MlstmGate::exponential, 2);
      call.has_record[3] = call.has_record[5] = false;
      call.border = border;
      call.threads = 3;
      call.run();
      expect_near_the_oracle(call, {.c = 1e-5, .rest = 1e-5});
    }
}

// The values do not depend on threads, nor do h and the states on whether they are asked for.
TEST(MlstmSaved, ChangesNoBitAndRepeats) {
  MlstmCall call({2, 24, 300}, {300, 2, 129}, MlstmGate::exponential, 3);
  call.run();
  const auto h = call.h_out.bytes();
  const auto records = call.records;
  call.border = 128;
  call.run();
  EXPECT_EQ(call.h_out.bytes(), h);
  EXPECT_EQ(call.records, records);
  const auto first = bytes_of(call);
  for (const int threads : {1, 2, 5, 8}) {
    call.threads = threads;
    call.run();
    EXPECT_EQ(bytes_of(call), first);
  }
}

TEST(MlstmSaved, RefusesBadArguments) {
  MlstmCall call({2, 3, 4}, {5}, MlstmGate::exponential, 8);
  call.border = 64;
  expect_refused([&] { call.run(); }, "mlstm: saved.border must be a multiple of 128, found 64");
  call.border = 128;
  std::byte* slot = nullptr;
  const Batch batch{call.offsets, {&slot, 1}};
  MlstmArgs args = call.args_of(batch);
  args.saved = call.to_save(batch);
  check_mlstm(args);
  const MlstmSaved good = args.saved;
  args.saved.l = {};
  expect_refused([&] { check_mlstm(args); }, "saved.l must be f32[5, 2], found no tensor");
  args.saved = good;
  args.saved.c = good.n;
  expect_refused([&] { check_mlstm(args); }, "saved.c must be f32[1, 2, 3, 4]");
  args.saved = good;
  args.state.pending = 4;
  expect_refused([&] { check_mlstm(args); }, "nothing is saved of states with pending tokens");
}

}  // namespace
}  // namespace xlstm::ops::test
