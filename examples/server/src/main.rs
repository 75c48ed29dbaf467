//! Serves the digits' network over HTTP: params on the device, replaced while it runs.
//!
//! ```console
//! $ cargo run --release --manifest-path examples/server/Cargo.toml -- examples/digits
//! $ curl -s localhost:8080/classify -d '{"images": [[0.0, …, 0.0]]}' -H 'content-type: application/json'
//! $ curl -s -X POST localhost:8080/reload
//! ```

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use safejax::{Client, Function, HostArray, Params, Program};
use serde::Deserialize;
use serde_json::{Value, json};

/// The images of one call of the program: its shapes are fixed. A bundle of several sizes would take any number.
const BATCH: usize = 360;

/// Pixels of an image.
const PIXELS: usize = 8 * 8;

struct Server {
    client: Client,
    classify: Function,
    file: PathBuf,
    /// Who has cloned the pointer keeps its params to the end, whatever is loaded meanwhile.
    params: RwLock<Arc<Params>>,
}

#[derive(Deserialize)]
struct Request {
    images: Vec<Vec<f32>>,
}

/// An error for the one who asked: what was wrong with the request, or what failed here.
type Failure = (StatusCode, String);

fn failed(error: safejax::Error) -> Failure {
    let status = match error.blame() {
        safejax::Blame::Caller => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}

async fn classify(
    State(server): State<Arc<Server>>,
    Json(request): Json<Request>,
) -> Result<Json<Value>, Failure> {
    let count = request.images.len();
    if count > BATCH || request.images.iter().any(|image| image.len() != PIXELS) {
        let wanted = format!("at most {BATCH} images of {PIXELS} numbers were expected");
        return Err((StatusCode::BAD_REQUEST, wanted));
    }
    let mut pixels: Vec<f32> = request.images.concat();
    pixels.resize(BATCH * PIXELS, 0.0);
    let x = HostArray::from_slice(&[BATCH, 8, 8], &pixels).map_err(failed)?;
    let params = Arc::clone(&server.params.read().expect("no writer panics"));
    // The call returns before the device is done; awaiting the copy blocks no thread.
    let outputs = server.classify.call(&[&params, &x]).map_err(failed)?;
    let logits = outputs.single().and_then(|logits| logits.start_to_host()).map_err(failed)?;
    let logits: Vec<f32> = logits.await.and_then(|logits| logits.to_vec()).map_err(failed)?;
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(digit, _)| digit);
    let digits: Vec<Option<usize>> = logits.chunks(10).take(count).map(best).collect();
    Ok(Json(json!({ "digits": digits })))
}

async fn reload(State(server): State<Arc<Server>>) -> Result<Json<Value>, Failure> {
    // Reading a file blocks, which is not for the threads that answer.
    let loading = Arc::clone(&server);
    let load = move || Params::load(&loading.client, &loading.file);
    let params = tokio::task::spawn_blocking(load).await.expect("loading does not panic").map_err(failed)?;
    let leaves = params.len();
    *server.params.write().expect("no writer panics") = Arc::new(params);
    Ok(Json(json!({ "leaves": leaves })))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory: PathBuf =
        std::env::args().nth(1).context("name the directory of the example digits")?.into();
    let client = Client::auto()?;
    let file = directory.join("params.safetensors");
    let params = RwLock::new(Arc::new(Params::load(&client, &file)?));
    let classify_function = client.compile(&Program::open(directory.join("forward.jaxexport"))?)?;
    let server = Arc::new(Server { client, classify: classify_function, file, params });
    let router =
        Router::new().route("/classify", post(classify)).route("/reload", post(reload)).with_state(server);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, router).await?)
}
