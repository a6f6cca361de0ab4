// `xlstm generate` and `xlstm chat` with the default model.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <regex>
#include <thread>

#include "cli/program.hpp"

namespace xlstm::test {
namespace {

using nlohmann::json;
using Names = std::set<std::string>;

json generate_json(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"generate", "--json"});
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.json();
}

TEST(CliGenerate, GreedyJsonIsGolden) {
  const json golden = default_model_golden();
  const std::size_t count = golden["greedy"].size();
  const std::string prompt = golden["prompt"];
  const json result = generate_json({"-p", prompt, "-n", std::to_string(count), "--temp", "0"});
  EXPECT_EQ(keys(result), (Names{"prompt_ids", "ids", "text", "finish_reason", "timings"}));
  EXPECT_EQ(result["prompt_ids"], golden["prompt_ids"]);
  EXPECT_EQ(result["ids"], golden["greedy"]);
  EXPECT_EQ(result["finish_reason"], "length");
  const json& timings = result["timings"];
  EXPECT_EQ(keys(timings),
            (Names{"load_s", "prompt_tokens", "prompt_s", "generated_tokens", "generate_s"}));
  EXPECT_EQ(timings["prompt_tokens"], golden["prompt_ids"].size());
  EXPECT_EQ(timings["generated_tokens"], count);
  for (const char* key : {"load_s", "prompt_s", "generate_s"})
    EXPECT_GT(timings[key].get<double>(), 0) << key;
}

TEST(CliGenerate, TextIsWhatJsonSays) {
  const std::vector<std::string> arguments = {"-p", "KING", "-n", "30", "--seed", "5"};
  const std::string text = generate_json(arguments)["text"];
  std::vector<std::string> plain = {"generate"};
  plain.insert(plain.end(), arguments.begin(), arguments.end());
  const Outcome outcome = run(plain);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, text + "\n");
  EXPECT_NE(outcome.err.find("tok/s"), std::string::npos) << outcome.err;
  plain.insert(plain.end(), {"--display-prompt", "--log-level", "none"});
  const Outcome quiet = run(plain);
  EXPECT_EQ(quiet.out, "KING" + text + "\n");
  EXPECT_EQ(quiet.err, "");
}

TEST(CliGenerate, LogProbabilities) {
  const json result = generate_json({"-p", "ROMEO:", "-n", "6", "--temp", "0", "--logprobs", "3"});
  ASSERT_EQ(result["logprobs"].size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    const json& entry = result["logprobs"][i];
    EXPECT_EQ(keys(entry), (Names{"id", "logprob", "top"}));
    EXPECT_EQ(entry["id"], result["ids"][i]);
    EXPECT_LE(entry["logprob"].get<double>(), 0);
    ASSERT_EQ(entry["top"].size(), 3U);
    EXPECT_EQ(entry["top"][0][0], entry["id"]) << "greedy takes the likeliest";
    EXPECT_EQ(entry["top"][0][1], entry["logprob"]);
    EXPECT_GE(entry["top"][0][1], entry["top"][1][1]);
    EXPECT_GE(entry["top"][1][1], entry["top"][2][1]);
  }
  EXPECT_FALSE(generate_json({"-n", "1"}).contains("logprobs"));
}

TEST(CliGenerate, SeveralPromptsEachAsAlone) {
  const auto with = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"-n", "20", "--seed", "3"});
    return generate_json(arguments);
  };
  const json both = with({"-p", "ROMEO:", "-p", "A"});
  EXPECT_EQ(keys(both), Names{"results"});
  ASSERT_EQ(both["results"].size(), 2U);
  for (const auto& [index, prompt] : {std::pair{0, "ROMEO:"}, {1, "A"}}) {
    const json alone = with({"-p", prompt});
    for (const char* key : {"prompt_ids", "ids", "text", "finish_reason"})
      EXPECT_EQ(both["results"][index][key], alone[key]) << prompt << " " << key;
  }
  const Outcome text = run({"generate", "-p", "ROMEO:", "-p", "A", "-n", "20", "--seed", "3"});
  const std::string first = both["results"][0]["text"];
  const std::string second = both["results"][1]["text"];
  EXPECT_EQ(text.out, "--- prompt 1 ---\n" + first + "\n--- prompt 2 ---\n" + second + "\n");
}

TEST(CliGenerate, StopStringEndsBeforeIt) {
  const std::vector<std::string> arguments = {"-p", "ROMEO:\n", "-n", "60", "--temp", "0"};
  const std::string text = generate_json(arguments)["text"];
  const std::string stop = text.substr(10, 4);
  std::vector<std::string> stopping = arguments;
  stopping.insert(stopping.end(), {"--stop", "@@", "--stop", stop});
  const json result = generate_json(stopping);
  EXPECT_EQ(result["finish_reason"], "stop");
  EXPECT_EQ(result["text"], text.substr(0, text.find(stop)));
}

TEST(CliGenerate, SeedsRepeatAndDiffer) {
  const json first = generate_json({"-p", "To", "-n", "40", "-s", "11"})["ids"];
  EXPECT_EQ(first, generate_json({"-p", "To", "-n", "40", "-s", "11"})["ids"]);
  EXPECT_NE(first, generate_json({"-p", "To", "-n", "40", "-s", "12"})["ids"]);
}

TEST(CliGenerate, RandomSeedIsShownAndRepeats) {
  const Outcome outcome = run({"generate", "-p", "To", "-n", "40", "--json"});
  std::smatch match;
  ASSERT_TRUE(std::regex_search(outcome.err, match, std::regex("seed (\\d+)"))) << outcome.err;
  EXPECT_EQ(generate_json({"-p", "To", "-n", "40", "--seed", match[1]})["ids"],
            outcome.json()["ids"]);
}

TEST(CliGenerate, EmptyPromptStartsFromBos) {
  EXPECT_EQ(generate_json({"-p", "", "-n", "2"})["prompt_ids"], json::array({0}));
  EXPECT_EQ(generate_json({"-n", "2"})["prompt_ids"], json::array({0}));
  const Outcome outcome = run({"generate", "-p", "", "--no-bos"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("empty"), std::string::npos) << outcome.err;
}

TEST(CliGenerate, NothingToGenerate) {
  const json result = generate_json({"-p", "A", "-n", "0"});
  EXPECT_EQ(result["ids"], json::array());
  EXPECT_EQ(result["text"], "");
  EXPECT_EQ(result["finish_reason"], "length");
}

TEST(CliGenerate, LogitBiasBansAndForces) {
  const std::vector<std::string> arguments = {"-p", "ROMEO:", "-n", "1", "--temp", "0"};
  const auto biased = [&arguments](const std::string& bias) {
    std::vector<std::string> more = arguments;
    more.insert(more.end(), {"--logit-bias", bias});
    return generate_json(more)["ids"];
  };
  const json free = generate_json(arguments)["ids"];
  EXPECT_NE(biased(free[0].dump() + "-inf"), free);
  EXPECT_EQ(biased("100+1000"), json::array({100}));
}

TEST(CliGenerate, EndOfTextEndsIt) {
  // The end token itself, made certain.
  const json result = generate_json({"-p", "A", "-n", "-1", "--logit-bias", "0+1000"});
  EXPECT_EQ(result["finish_reason"], "stop");
  EXPECT_EQ(result["ids"], json::array());
  const json on = generate_json({"-p", "A", "-n", "3", "--logit-bias", "0+1000", "--ignore-eos"});
  EXPECT_EQ(on["finish_reason"], "length");
  EXPECT_EQ(on["ids"].size(), 3U);
}

TEST(CliGenerate, PromptFromFileStdinAndEscapes) {
  const TemporaryFolder folder;
  const std::string text = "ROMEO:\nO, ";
  const json expected = generate_json({"-p", text, "-n", "1"})["prompt_ids"];
  EXPECT_EQ(generate_json({"-f", folder.write("p.txt", text), "-n", "1"})["prompt_ids"], expected);
  EXPECT_EQ(generate_json({"-e", "-p", "ROMEO:\\nO, ", "-n", "1"})["prompt_ids"], expected);
  EXPECT_EQ(run({"generate", "-f", "-", "-n", "1", "--json"}, text).json()["prompt_ids"], expected);
}

TEST(CliGenerate, StateGoesOnWhereItWasSaved) {
  const TemporaryFolder folder;
  const std::string state = folder / "s.state";
  const std::string whole = generate_json({"-p", "ROMEO:", "-n", "40", "--temp", "0"})["text"];
  const std::string first =
      generate_json({"-p", "ROMEO:", "-n", "15", "--temp", "0", "--state-save", state})["text"];
  const json second = generate_json({"-n", "25", "--temp", "0", "--state-load", state});
  EXPECT_EQ(second["prompt_ids"], json::array());
  EXPECT_EQ(first + second["text"].get<std::string>(), whole);
}

TEST(CliGenerate, TextComesAsItIsWrittenAndInterruptEndsIt) {
  Program program({"generate", "-p", "A", "-n", "100000000", "--ignore-eos"});
  std::string seen;
  for (int i = 0; i < 600 && seen.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    seen = program.out();
  }
  EXPECT_NE(seen, "") << "nothing after a minute";
  program.signal(SIGINT);
  const Outcome outcome = program.wait();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(outcome.out.starts_with(seen));
  EXPECT_TRUE(outcome.out.ends_with("\n"));
}

TEST(CliGenerate, InterruptedJsonIsWhole) {
  Program program({"generate", "-p", "A", "-n", "100000000", "--ignore-eos", "--json"});
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  program.signal(SIGINT);
  const Outcome outcome = program.wait();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const json result = outcome.json();
  EXPECT_EQ(result["finish_reason"], "length");
  EXPECT_EQ(result["timings"]["generated_tokens"], result["ids"].size());
}

TEST(CliGenerate, ClosedStdoutIsAnErrorNotACrash) {
  for (const bool as_json : {false, true}) {
    std::vector<std::string> arguments = {"generate", "-p", "A", "-n", "200", "--ignore-eos"};
    if (as_json) arguments.push_back("--json");
    const Outcome outcome = Program(arguments, {}, {}, true).wait();
    EXPECT_EQ(outcome.status, 1);
    EXPECT_NE(outcome.err.find("stdout"), std::string::npos) << outcome.err;
  }
}

TEST(CliChat, KeepsResetsSavesAndLoads) {
  const TemporaryFolder folder;
  const std::string state = folder / "c.state";
  const Outcome outcome = run({"chat", "-n", "8", "--temp", "0"},
                              "ROMEO:\n"  // answer 1
                              "/save " +
                                  state +
                                  "\n"  //
                                  "\n"  // answer 2: goes on
                                  "/load " +
                                  state +
                                  "\n"               //
                                  "\n"               // answer 3 == answer 2
                                  "/regen\n"         // answer 4 == answer 3: greedy
                                  "/rest\n"          // a typo is told, nothing else happens
                                  "/load nowhere\n"  // neither does a wrong file end it
                                  "/reset\n"         //
                                  "ROMEO:\n"         // answer 5 == answer 1
                                  "/quit\n"
                                  "never read\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("did you mean /reset?"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("nowhere"), std::string::npos) << outcome.err;
  const std::string one = generate_json({"-p", "ROMEO:", "-n", "8", "--temp", "0"})["text"];
  const std::string both = generate_json({"-p", "ROMEO:", "-n", "16", "--temp", "0"})["text"];
  const std::string two = both.substr(one.size());
  EXPECT_EQ(outcome.out, one + "\n" + two + "\n" + two + "\n" + two + "\n" + one + "\n");
}

TEST(CliChat, RegenerateDrawsAnew) {
  const Outcome outcome = run({"chat", "-n", "30", "--seed", "1"}, "ROMEO:\n/regen\n");
  const std::string first = generate_json({"-p", "ROMEO:", "-n", "30", "--seed", "1"})["text"];
  const std::string second = generate_json({"-p", "ROMEO:", "-n", "30", "--seed", "2"})["text"];
  EXPECT_EQ(outcome.out, first + "\n" + second + "\n");
}

TEST(CliChat, BackslashContinuesALine) {
  const Outcome outcome = run({"chat", "-n", "5", "--temp", "0"}, "ROMEO:\\\n\n");
  const std::string text = generate_json({"-p", "ROMEO:\n", "-n", "5", "--temp", "0"})["text"];
  EXPECT_EQ(outcome.out, text + "\n");
}

}  // namespace
}  // namespace xlstm::test
