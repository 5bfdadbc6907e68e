// What llama.cpp makes of GGUF files: `node llama_cpp.mjs MODULE REQUESTS`, answers as JSON on stdout.
// A request is {file, text, tokens}; its answer {tokens: of the text, probabilities: [position][token]}.
import fs from "node:fs";

const [module, requests] = process.argv.slice(2);
const {getLlama} = await import(module);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, maxThreads: 1});
const answers = [];
for (const {file, text, tokens} of JSON.parse(fs.readFileSync(requests, "utf8"))) {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({contextSize: 256});
    const outputs = await context.getSequence().controlledEvaluate(
        tokens.map((token) => [token, {generateNext: {probabilities: true}}])
    );
    const probabilities = outputs.map(({next}) => {
        const row = [];
        for (const [token, probability] of next.probabilities) row[token] = probability;
        return row;
    });
    answers.push({tokens: Array.from(model.tokenize(text, false)), probabilities});
    await context.dispose();
    await model.dispose();
}
console.log(JSON.stringify(answers));
