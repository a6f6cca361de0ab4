// The other subcommands, and what a wrong command line or a broken model gets.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "cli/program.hpp"

namespace xlstm::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Names = std::set<std::string>;

const std::vector<std::string> kCommands = {"generate", "chat",    "tokenize", "eval",
                                            "info",     "convert", "bench",    "doctor"};

// The default model's files in a folder of their own, to be damaged.
void copy_model(const TemporaryFolder& folder) {
  for (const auto& entry : fs::directory_iterator(default_model()))
    fs::copy(entry.path(), folder.path() / entry.path().filename());
}

void expect_failure(const Outcome& outcome, int status, const std::string& message) {
  EXPECT_EQ(outcome.status, status) << "expected '" << message << "', found: " << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_NE(outcome.err.find(message), std::string::npos)
      << "expected '" << message << "' in: " << outcome.err;
  EXPECT_TRUE(outcome.err.starts_with(status == 2 ? "xlstm: " : "xlstm: error: ")) << outcome.err;
}

std::string joined(const json& ids) {
  std::string list;
  for (const json& id : ids) list += (list.empty() ? "" : ",") + id.dump();
  return list;
}

TEST(CliUsage, HelpAndVersion) {
  for (const std::string& command : kCommands) {
    const Outcome outcome = run({command, "--help"});
    EXPECT_EQ(outcome.status, 0) << command;
    EXPECT_NE(outcome.out.find("Examples:\n  xlstm " + command), std::string::npos) << outcome.out;
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(run({"help", command}).out, outcome.out);
  }
  const Outcome overview = run({"--help"});
  for (const std::string& command : kCommands)
    EXPECT_NE(overview.out.find("\n  " + command + " "), std::string::npos) << command;
  EXPECT_TRUE(run({"--version"}).out.starts_with("xlstm 0."));
  EXPECT_EQ(run({}).status, 2);
}

struct Case {
  std::vector<std::string> arguments;
  std::string message;
};

TEST(CliUsage, WrongCommandLinesEndWithStatus2) {
  const std::vector<Case> cases = {
      {{"generat"}, "did you mean generate?"},
      {{"infos"}, "did you mean info?"},
      {{"frobnicate"}, "unknown command 'frobnicate'"},
      {{"--verison"}, "did you mean --version?"},
      {{"generate", "--promt", "x"}, "did you mean --prompt?"},
      {{"generate", "--topk=5"}, "did you mean --top-k?"},
      {{"bench", "--jsno"}, "did you mean --json?"},
      {{"generate", "-x"}, "unknown option '-x'\n"},
      {{"generate", "a prompt"}, "-p"},
      {{"generate", "-p"}, "--prompt"},
      {{"generate", "-n", "abc"}, "'abc'"},
      {{"generate", "-n", "1.5"}, "'1.5'"},
      {{"generate", "-n", "-2"}, "'-2'"},
      {{"generate", "-n", ""}, "''"},
      {{"generate", "--threads", "-3"}, "'-3'"},
      {{"generate", "--top-p", "7"}, "from 0 to 1"},
      {{"generate", "--min-p", "nan"}, "'nan'"},
      {{"generate", "--temp", "-1"}, "'-1'"},
      {{"generate", "--temp", "inf"}, "'inf'"},
      {{"generate", "--seed", "99999999999999999999"}, "'99999999999999999999'"},
      {{"generate", "--dtype", "f64"}, "f32|bf16"},
      {{"generate", "--prefill-dtype", "int8"}, "same|fp8|fp8-blocks"},
      {{"generate", "--pack-weights", "yes"}, "auto|on|off|both"},
      {{"generate", "--state-dtype", "f16"}, "f32|bf16"},
      {{"generate", "--device", "gpu"}, "cuda:<index>"},
      {{"generate", "--prompt-ids", "1,,2"}, "''"},
      {{"generate", "--prompt-ids", "1;2"}, "'1;2'"},
      {{"generate", "--logit-bias", "5"}, "ID+BIAS"},
      {{"generate", "--logprobs", "3"}, "--json"},
      {{"generate", "--stop", ""}, "--stop"},
      {{"generate", "-p", "a", "-f", "b"}, "-p, -f and --prompt-ids"},
      {{"generate", "-p", "a", "-p", "b", "--state-save", "s"}, "one prompt"},
      {{"tokenize"}, "exactly one"},
      {{"tokenize", "-p", "a", "--decode", "1"}, "exactly one"},
      {{"eval"}, "-f FILE"},
      {{"eval", "-f", "x", "--window", "0"}, "--window"},
      {{"convert"}, "-o DIR"},
      {{"bench", "-b", "1,0"}, "'0'"},
  };
  for (const Case& c : cases) expect_failure(run(c.arguments), 2, c.message);
  expect_failure(run({"generate"}, "", {"XLSTM_THREADS=many"}), 2, "'many'");
}

TEST(CliErrors, WrongModelsAndTexts) {
  const TemporaryFolder folder;
  const std::string file = folder.write("text.txt", "some text");
  const std::string empty = folder.path().string();
  const std::vector<Case> cases = {
      {{"generate", "-m", folder / "missing"}, "does not exist"},
      {{"generate", "-m", file}, "is a file"},
      {{"generate", "-m", empty}, "config"},
      {{"generate", "-f", folder / "missing"}, "could not open"},
      {{"generate", "-f", empty}, "is a directory"},
      {{"generate", "-p", "bad \xff\xfe"}, "UTF-8"},
      {{"generate", "-f", folder.write("bad.txt", "abc\xc3"), "--json"}, "UTF-8"},
      {{"tokenize", "-p", "\xed\xa0\x80", "--json"}, "UTF-8"},
      {{"generate", "--prompt-ids", "5,320"}, "320"},
      {{"tokenize", "--decode", "5,100000"}, "100000"},
      {{"eval", "-f", file}, "--window"},
      {{"generate", "-p", "a", "--device", "cpu", "--prefill-dtype", "fp8"}, "found the CPU"},
      {{"generate", "-p", "a", "--device", "cpu", "--pack-weights", "on"}, "found the CPU"},
      {{"generate", "-p", "a", "--device", "cpu", "--state-dtype", "bf16"},
       "states in bf16: expected a CUDA device, found the CPU"},
      {{"generate", "--state-load", folder / "missing"}, "missing"},
      {{"generate", "--state-load", file}, "text.txt"},
      {{"generate", "-n", "1", "--json", "--state-save", folder / "no/such"}, "no/such"},
  };
  for (const Case& c : cases) {
    const Outcome outcome = run(c.arguments);
    EXPECT_EQ(outcome.status, 1) << c.message << ": " << outcome.err;
    EXPECT_NE(outcome.err.find("xlstm: error: "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find(c.message), std::string::npos)
        << "expected '" << c.message << "' in: " << outcome.err;
  }
}

TEST(CliErrors, DamagedModelFiles) {
  const auto damaged = [](const std::string& name, const std::string& content) {
    const TemporaryFolder folder;
    copy_model(folder);
    folder.write(name, content);
    return run({"generate", "-m", folder.path().string(), "-p", "A"});
  };
  expect_failure(damaged("config.json", "{"), 1, "config.json");
  expect_failure(damaged("config.json", R"({"model_type": "llama"})"), 1, "llama");
  expect_failure(damaged("model.safetensors", "short"), 1, "model.safetensors");
  expect_failure(damaged("tokenizer.json", "[]"), 1, "tokenizer.json");
}

TEST(CliErrors, WeightsThatAreNotNumbers) {
  const TemporaryFolder folder;
  copy_model(folder);
  std::fstream file(folder.path() / "model.safetensors",
                    std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(-2, std::ios::end);
  file.write("\xc0\x7f", 2);  // NaN as bfloat16
  file.close();
  const std::string model = folder.path().string();
  expect_failure(run({"info", "-m", model, "--check-tensors"}), 1, "NaN");
  const Outcome unchecked = run({"generate", "-m", model, "-p", "A", "--json"});
  EXPECT_EQ(unchecked.status, 1) << "an error, never silently wrong text";
  EXPECT_EQ(unchecked.out, "");
  EXPECT_NE(unchecked.err.find("nan"), std::string::npos) << unchecked.err;
}

TEST(CliErrors, WithoutTokenizerOnlyIds) {
  const TemporaryFolder folder;
  copy_model(folder);
  fs::remove(folder.path() / "tokenizer.json");
  const std::string model = folder.path().string();
  expect_failure(run({"generate", "-m", model, "-p", "A"}), 1, "--prompt-ids");
  const std::string prompt = joined(default_model_golden()["prompt_ids"]);
  const Outcome ids =
      run({"generate", "-m", model, "--prompt-ids", prompt, "-n", "5", "--temp", "0"});
  EXPECT_EQ(ids.status, 0) << ids.err;
  const auto greedy = default_model_golden()["greedy"].get<std::vector<int>>();
  EXPECT_EQ(ids.out, joined(std::vector<int>(greedy.begin(), greedy.begin() + 5)) + "\n");
  EXPECT_EQ(run({"info", "-m", model, "--json"}).json()["tokenizer"], nullptr);
}

TEST(CliTokenize, ThereAndBack) {
  const json golden = default_model_golden();
  const std::string prompt = golden["prompt"];
  const json result = run({"tokenize", "-p", prompt, "--json"}).json();
  EXPECT_EQ(keys(result), Names{"ids"});
  EXPECT_EQ(result["ids"], golden["prompt_ids"]);
  EXPECT_EQ(run({"tokenize", "-p", prompt}).out, "51,48,46,38,48,27,200\n");
  const json text = run({"tokenize", "--decode", "51,48,46,38,48,27,200", "--json"}).json();
  EXPECT_EQ(text, json({{"text", prompt}}));
  EXPECT_EQ(run({"tokenize", "--decode", "51, 48"}).out, "RO\n");
  EXPECT_EQ(run({"tokenize", "-p", "RO", "--pieces"}).out, "     51  R\n     48  O\n");
  EXPECT_EQ(run({"tokenize", "--decode", "0"}).out, "<|endoftext|>\n");
}

TEST(CliTokenize, EveryPromptArrivesAsTyped) {
  // What an option parser might take for its own syntax.
  for (const std::string text : {"[a,b]", "{}", "%%", "\"quoted\"", "-p", "--json", "--", "a=b",
                                 "naïve 日本 🙂", " ", "\\n", "$HOME"}) {
    const json ids = run({"tokenize", "-p", text, "--json"}).json()["ids"];
    EXPECT_EQ(run({"tokenize", "--decode", joined(ids), "--json"}).json()["text"], text);
  }
}

TEST(CliTokenize, HalfACharacterIsStillJson) {
  const json e_acute = run({"tokenize", "-p", "é", "--json"}).json()["ids"];
  ASSERT_EQ(e_acute.size(), 2U) << "a byte-level model without merges";
  const json half = run({"tokenize", "--decode", e_acute[0].dump(), "--json"}).json();
  EXPECT_EQ(half["text"], "\xEF\xBF\xBD");
}

TEST(CliEval, FieldsAgree) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 12; ++i) text += "ROMEO:\nWhat light through yonder window breaks?\n\n";
  const std::string file = folder.write("t.txt", text);
  const auto evaluate = [&file](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", "-f", file, "--window", "100", "--json"});
    const Outcome outcome = run(more);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return outcome.json();
  };
  const json result = evaluate({"--no-bos"});
  EXPECT_EQ(keys(result), (Names{"nll", "tokens", "perplexity", "bits_per_byte"}));
  const double nll = result["nll"];
  EXPECT_EQ(result["tokens"], (text.size() - 1) / 100 * 100);
  EXPECT_GT(nll, 0.1);
  EXPECT_LT(nll, 4);
  EXPECT_NEAR(result["perplexity"].get<double>(), std::exp(nll), 1e-9 * std::exp(nll));
  EXPECT_NEAR(result["bits_per_byte"].get<double>(), nll / std::log(2.0), 1e-9)
      << "one token is one byte here";

  EXPECT_EQ(evaluate({"--windows", "2", "--no-bos"})["tokens"], 200);
  EXPECT_LT(evaluate({"--carry", "--no-bos"})["nll"].get<double>(), nll)
      << "a repeated text is easier for who remembers it";
  EXPECT_NEAR(evaluate({"--no-bos", "--dtype", "bf16"})["nll"].get<double>(), nll, 0.02);
  EXPECT_NEAR(evaluate({"--no-bos", "--chunk-size", "7"})["nll"].get<double>(), nll, 1e-4);
}

TEST(CliInfo, DefaultModel) {
  const json info = run({"info", "--json"}).json();
  EXPECT_EQ(keys(info),
            (Names{"model", "architecture", "parameters", "weights", "streamed_bytes_per_token",
                   "state_bytes_per_sequence", "tokenizer", "bos_id", "adds_bos", "eos_ids",
                   "unknown_config_keys", "unexpected_tensors"}));
  const std::int64_t parameters = info["parameters"];
  EXPECT_GT(parameters, 4'900'000);
  EXPECT_LT(parameters, 5'100'000);
  EXPECT_EQ(info["weights"]["by_dtype"]["bf16"], 2 * parameters);
  EXPECT_EQ(info["architecture"]["num_blocks"], 6);
  EXPECT_EQ(info["architecture"]["ffn_dim"], 704);
  // All but the embedding [320, 256] is read for each token.
  EXPECT_EQ(info["streamed_bytes_per_token"], 2 * (parameters - 320 * 256));
  EXPECT_EQ(info["adds_bos"], false);
  EXPECT_EQ(info["eos_ids"], json::array({0}));
  EXPECT_EQ(info["unexpected_tensors"], json::array());
  const Outcome text = run({"info"});
  EXPECT_EQ(text.status, 0);
  EXPECT_NE(text.out.find("6 blocks, width 256, 4 heads"), std::string::npos) << text.out;
}

TEST(CliInfo, MemoryOfADeviceWithOrWithoutACard) {
  const json info =
      run({"info", "--json", "--device", "cuda", "--sequences", "20", "--pack-weights", "off"})
          .json();
  const json& memory = info["memory"];
  EXPECT_EQ(keys(memory),
            (Names{"device", "dtype", "sequences", "packed_weights", "weights_bytes",
                   "state_bytes_per_sequence", "states_bytes", "decode_scratch_bytes",
                   "prompt_scratch_bytes", "prompt_tokens_of_a_pass", "step_inputs_bytes",
                   "results_bytes", "total_bytes", "free_bytes", "sequences_that_fit"}));
  EXPECT_EQ(memory["device"], "cuda:0");
  EXPECT_EQ(memory["sequences"], 20);
  EXPECT_EQ(memory["states_bytes"], 20 * memory["state_bytes_per_sequence"].get<std::int64_t>());
  EXPECT_GT(memory["state_bytes_per_sequence"], info["state_bytes_per_sequence"])
      << "there with rings of pending tokens";
  EXPECT_GE(memory["weights_bytes"], info["weights"]["bytes"]);
  EXPECT_EQ(memory["results_bytes"], 3 * 20 * 320 * 4);
  EXPECT_EQ(memory["free_bytes"].is_null(), memory["sequences_that_fit"].is_null());
#ifdef XLSTM_TEST_WITHOUT_CUDA
  EXPECT_TRUE(memory["free_bytes"].is_null());
#endif
  const Outcome text = run({"info", "--device", "cuda:1"});
  EXPECT_EQ(text.status, 0) << text.err;
  EXPECT_NE(text.out.find("memory of cuda:1, 1 sequence, bf16"), std::string::npos)
      << "the type of the weights, as generate would have it: " << text.out;
  EXPECT_NE(text.out.find("for 16384 tokens of a prompt"), std::string::npos) << text.out;
  const Outcome prompt = run({"info", "--device", "cuda", "--prompt-len", "100"});
  EXPECT_NE(prompt.out.find("for 100 tokens of a prompt"), std::string::npos) << prompt.out;
  EXPECT_EQ(run({"info", "--device", "cpu", "--prompt-len", "100"}).status, 2);
  const Outcome f32 = run({"info", "--device", "cuda", "--dtype", "f32"});
  EXPECT_NE(f32.out.find("memory of cuda:0, 1 sequence, f32"), std::string::npos) << f32.out;
  const Outcome coded = run({"info", "--device", "cuda", "--prefill-dtype", "fp8"});
  EXPECT_EQ(coded.status, 0) << coded.err;

  const json packed =
      run({"info", "--json", "--device", "cuda", "--pack-weights", "on"}).json()["memory"];
  EXPECT_EQ(packed["packed_weights"], true);
  const json plain =
      run({"info", "--json", "--device", "cuda", "--pack-weights", "off"}).json()["memory"];
  EXPECT_EQ(plain["packed_weights"], false);
  EXPECT_GT(packed["weights_bytes"], 0.76 * plain["weights_bytes"].get<double>());
  EXPECT_LT(packed["weights_bytes"], 0.9 * plain["weights_bytes"].get<double>());

  const json on_cpu = run({"info", "--json", "--sequences", "2"}).json()["memory"];
  EXPECT_EQ(on_cpu["device"], "cpu");
  EXPECT_GT(on_cpu["sequences_that_fit"], 100);

  // A shape alone: nothing is loaded and nothing made.
  const std::string config = (default_model() / "config.json").string();
  const json shape = run({"info", "--json", "--config", config, "--device", "cuda", "--dtype",
                          "bf16", "--pack-weights", "off"})
                         .json();
  EXPECT_EQ(keys(shape), Names{"memory"});
  EXPECT_EQ(shape["memory"]["weights_bytes"], memory["weights_bytes"]);
  expect_failure(run({"info", "--config", config}), 2, "--config goes with");
  for (const char* prefill : {"fp8", "fp8-blocks"}) {
    const json fp8 = run({"info", "--json", "--config", config, "--device", "cuda", "--dtype",
                          "bf16", "--prefill-dtype", prefill, "--pack-weights", "off"})
                         .json()["memory"];
    EXPECT_GT(fp8["weights_bytes"], 1.3 * memory["weights_bytes"].get<double>());
    EXPECT_LT(fp8["weights_bytes"], 1.5 * memory["weights_bytes"].get<double>());
  }
  expect_failure(run({"info", "--config", config, "--device", "cuda", "--prefill-dtype", "fp8"}), 1,
                 "expected bf16 arithmetic (--dtype bf16), found f32");
  const std::vector<std::string> asks = {"info", "--json", "--device", "cuda"};
  std::vector<std::string> asks_half = asks;
  asks_half.insert(asks_half.end(), {"--state-dtype", "bf16"});
  const json whole = run(asks).json(), half = run(asks_half).json(),
             by_name = run(asks, "", {"XLSTM_STATE_DTYPE=bf16"}).json();
  EXPECT_EQ(half, by_name);
  EXPECT_EQ(half["state_bytes_per_sequence"], whole["state_bytes_per_sequence"]) << "on the CPU";
  EXPECT_LT(half["memory"]["states_bytes"], 0.75 * whole["memory"]["states_bytes"].get<double>());
}

// Before the device is asked for, the weights' type is read: it decides the arithmetic on a card.
TEST(CliGenerate, ADeviceThatIsNotThere) {
  expect_failure(run({"generate", "-p", "a", "-n", "1", "--device", "cuda:63"}), 1, "cuda:63");
  expect_failure(run({"generate", "-p", "a", "-n", "1", "--device", "cuda:64"}), 2, "--device");
}

TEST(CliInfo, UnknownConfigKeysAreReported) {
  const TemporaryFolder folder;
  copy_model(folder);
  std::ifstream file(default_model() / "config.json");
  json config = json::parse(file);
  config["made_up"] = {1, 2};
  folder.write("config.json", config.dump());
  const json info = run({"info", "--json"}, "", {"XLSTM_MODEL=" + folder.path().string()}).json();
  EXPECT_EQ(info["model"], folder.path().string()) << "XLSTM_MODEL stands in for -m";
  EXPECT_EQ(info["unknown_config_keys"]["made_up"], json({1, 2}));
}

TEST(CliConvert, KeepsWhatTheModelSays) {
  const TemporaryFolder folder;
  const std::string output = folder / "f32";
  const Outcome outcome = run({"convert", "-o", output, "--dtype", "f32"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json golden = default_model_golden();
  const std::string prompt = golden["prompt"];
  const json result =
      run({"generate", "-m", output, "-p", prompt, "-n", "64", "--temp", "0", "--json"}).json();
  EXPECT_EQ(result["prompt_ids"], golden["prompt_ids"]);
  EXPECT_TRUE(std::equal(result["ids"].begin(), result["ids"].end(), golden["greedy"].begin()));
  const json info = run({"info", "-m", output, "--json"}).json();
  EXPECT_EQ(info["weights"]["by_dtype"]["f32"], 4 * info["parameters"].get<std::int64_t>());
  expect_failure(run({"convert", "-o", output}), 1, "--force");
}

TEST(CliBench, RowsAndLimits) {
  const json result = run({"bench", "-p", "16", "-n", "4", "-b", "1,2", "-d", "0,8", "-r", "2",
                           "-t", "1", "--json"})
                          .json();
  EXPECT_EQ(keys(result), (Names{"machine", "rows"}));
  EXPECT_EQ(keys(result["machine"]), (Names{"read_gb_s", "peak_gflop_s"}));
  const double bandwidth = result["machine"]["read_gb_s"].get<double>() * 1e9;
  EXPECT_GT(bandwidth, 1e8);
  EXPECT_GT(result["machine"]["peak_gflop_s"].get<double>(), 0.1);
  ASSERT_EQ(result["rows"].size(), 8U);
  const double streamed = run({"info", "--json"}).json()["streamed_bytes_per_token"];
  std::vector<std::string> tests;
  for (const json& row : result["rows"]) {
    EXPECT_EQ(keys(row), (Names{"test", "batch", "depth", "dtype", "tok_s", "tok_s_spread",
                                "percent_of_limit"}));
    EXPECT_EQ(row["dtype"], "f32");
    EXPECT_GT(row["tok_s"].get<double>(), 0);
    EXPECT_GE(row["tok_s_spread"].get<double>(), 0);
    EXPECT_GT(row["percent_of_limit"].get<double>(), 0);
    const std::string test = row["test"];
    if (row["batch"] == 1) tests.push_back(test);
    const double read = streamed * row["tok_s"].get<double>() / row["batch"].get<double>();
    if (test.starts_with("tg")) {
      EXPECT_NEAR(row["percent_of_limit"].get<double>(), 100 * read / bandwidth,
                  1e-4 * read / bandwidth);
    }
  }
  EXPECT_EQ(tests, (std::vector<std::string>{"pp16", "tg4", "pp16 @ d8", "tg4 @ d8"}));
}

TEST(CliBench, RandomWeightsOfAConfig) {
  const TemporaryFolder folder;
  const json tiny = {{"model_type", "xlstm"},
                     {"hidden_size", 64},
                     {"num_blocks", 2},
                     {"num_heads", 2},
                     {"vocab_size", 100}};
  const std::string file = folder.write("tiny.json", tiny.dump());
  const json result = run({"bench", "--config", file, "--dtype", "bf16", "-p", "8", "-n", "2", "-r",
                           "1", "-t", "1", "--json"})
                          .json();
  ASSERT_EQ(result["rows"].size(), 2U);
  EXPECT_EQ(result["rows"][0]["dtype"], "bf16");
  const Outcome table =
      run({"bench", "--config", file, "-p", "0", "-n", "2", "-r", "1", "-t", "1"});
  EXPECT_NE(table.out.find("| tg2 "), std::string::npos) << table.out;
  EXPECT_EQ(table.out.find("| pp"), std::string::npos) << table.out;

  json huge = tiny;
  huge["hidden_size"] = 65536;
  huge["num_blocks"] = 400;
  const Outcome too_large = run({"bench", "--config", folder.write("huge.json", huge.dump())});
  expect_failure(too_large, 1, "memory");
  EXPECT_NE(too_large.err.find(" TB"), std::string::npos) << too_large.err;
}

TEST(CliBench, ABlockStackAloneIsToldApart) {
  const TemporaryFolder folder;
  const json stack = {{"model_type", "xlstm"},
                      {"hidden_size", 64},
                      {"num_blocks", 2},
                      {"num_heads", 2},
                      {"vocab_size", 0}};
  const std::string file = folder.write("stack.json", stack.dump());
  expect_failure(run({"bench", "--config", file}), 1, "a block stack alone");
  expect_failure(run({"info", "--train", "--config", file}), 1, "a block stack alone");
}

TEST(CliDoctor, TellsAboutTheMachine) {
  const Outcome outcome = run({"doctor"}, "", {"XLSTM_ISA=scalar"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  for (const char* word : {"CPU ", "scalar in use", "XLSTM_ISA", "cores", "memory", "libraries",
                           "fmt ", "CUDA", "shakespeare-byte, loads and runs"})
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << " in:\n" << outcome.out;
  expect_failure(run({"doctor"}, "", {"XLSTM_ISA=mmx"}), 1, "mmx");
}

}  // namespace
}  // namespace xlstm::test
