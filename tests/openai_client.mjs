// OpenAI's npm package against a server: prints, as JSON, what it makes of each answer.
import fs from "node:fs";
import { File } from "node:buffer";
import OpenAI from "openai";

globalThis.File ??= File;                                            // node 18 does not have it
const [baseURL, path, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
// An option of ours passes through, as one that the package does not know.
const ask = (more) => client.audio.transcriptions.create(
  { file: fs.createReadStream(path), model: "whisper-1", prompt, vad_filter: "false", ...more },
);

const told = {};
for (const response_format of ["json", "text", "srt", "vtt"]) {
  told[response_format] = await ask({ response_format });
}
told.verbose_json = await ask({
  response_format: "verbose_json", timestamp_granularities: ["word", "segment"],
});
told.stream = [];
for await (const event of await ask({ stream: true })) told.stream.push(event);
told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);
const { response } = await ask({}).withResponse();
told.job = response.headers.get("x-job-id");
try {
  await ask({ model: "huge" });
} catch ({ status, code, param, type }) {
  told.error = { status, code, param, type };
}
console.log(JSON.stringify(told));
