// Prints what a GET of its argument answers.
const response = await fetch(process.argv[2]);
process.stdout.write(await response.text());
