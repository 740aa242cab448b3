// Runs the golden cases: node conformance.js ADDRESS CASES PROTOS COMMON-PROTOS
// Nothing of the contract is written down here: the services come from the .proto files.
const { deepStrictEqual } = require("node:assert");
const { readFileSync } = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, cases, protos, common] = process.argv.slice(2);
const definition = loader.loadSync(
  ["forebay/v1/inference_service.proto", "forebay/v1/job_service.proto", "google/rpc/error_details.proto"],
  { includeDirs: [protos, common], longs: String, enums: String, bytes: String, oneofs: true },
);
const { forebay } = grpc.loadPackageDefinition(definition);
const details = ["google.rpc.ErrorInfo", "google.rpc.BadRequest"];
const status = definition["google.rpc.Status"];

// What went wrong, as the cases say it.
function errorOf(code, proto) {
  const found = { code: grpc.status[code] };
  for (const detail of proto?.details ?? []) {
    const type = details.find((name) => detail.type_url?.endsWith(name) || detail.typeUrl?.endsWith(name));
    if (!type) continue;
    const message = definition[type].deserialize(Buffer.from(detail.value, "base64"));
    if (type === "google.rpc.ErrorInfo") found.reason = message.reason;
    else found.fields = message.fieldViolations.map((violation) => violation.field);
  }
  return { error: found };
}

function failureOf(failure) {
  const [raw] = failure.metadata.get("grpc-status-details-bin");
  return errorOf(failure.code, raw && status.deserialize(raw));
}

const inference = new forebay.v1.InferenceService(address, grpc.credentials.createInsecure());
const jobs = new forebay.v1.JobService(address, grpc.credentials.createInsecure());

function call(client, method, request, timeout) {
  return new Promise((resolve) =>
    client[method](request, { deadline: Date.now() + timeout }, (failure, response) =>
      resolve(failure ? failureOf(failure) : { response }),
    ),
  );
}

// The outcome of a job or of a stream's item, which has a response or an error of its own.
const outcomeOf = (result) =>
  result.outcome === "error" ? errorOf(result.error.code, result.error) : { response: result.response };

function stream(requests) {
  return new Promise((resolve, reject) => {
    const found = [];
    const open = inference.streamPredict({ deadline: Date.now() + 30000 });
    open.on("data", (message) => found.push(...message.results.map(outcomeOf)));
    open.on("end", () => resolve(found));
    open.on("error", reject);
    const items = requests.map((request, id) => ({ id, request }));
    open.write({ options: { order: "RESULT_ORDER_AS_SENT" }, items });
    open.end();
  });
}

async function job(request) {
  const submitted = await call(jobs, "submit", { request }, 30000);
  if (submitted.error) return submitted;
  const { response } = await call(jobs, "result", { id: submitted.response.job.id, wait: { seconds: 20 } }, 30000);
  return outcomeOf(response);
}

// What a case promises must be there; what it does not speak of may be.
function check(wanted, found) {
  if (wanted.error) deepStrictEqual({ ...found.error, ...(wanted.error.reason ? {} : { reason: undefined }) },
    { reason: undefined, ...wanted.error });
  else {
    const given = found.response;
    const outputs = given.outputs.map((output) =>
      Object.fromEntries(Object.entries(output).filter(([, value]) => value.length)));
    deepStrictEqual(outputs, wanted.response.outputs);
    for (const name of ["model", "version", "requestId"]) deepStrictEqual(given[name] || undefined, wanted.response[name]);
  }
}

async function run(one) {
  if (one.method === "StreamPredict") {
    const found = await stream(one.requests);
    deepStrictEqual(found.length, one.outcomes.length);
    one.outcomes.forEach((wanted, index) => check(wanted, found[index]));
  } else if (one.method === "Submit") check(one, await job(one.request));
  else if (one.method === "Result") check(one, await call(jobs, "result", { id: one.id }, 30000));
  else check(one, await call(inference, "predict", one.request, one.timeoutMs ?? 30000));
}

(async () => {
  let passed = 0;
  const all = JSON.parse(readFileSync(cases)).cases;
  for (const one of all) {
    try {
      await run(one);
      passed += 1;
    } catch (error) {
      console.log(`${one.name}: ${error.message}`);
    }
  }
  console.log(`${passed} cases passed`);
  process.exit(passed === all.length ? 0 : 1);
})();
