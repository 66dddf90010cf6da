{%- set time_zone, gap, characters = var("time_zone"), var("gap_minutes"), var("document_characters") %}
{%- if time_zone not in modules.pytz.all_timezones_set %}
{{- exceptions.raise_compiler_error("time_zone: " ~ time_zone ~ " is not a time zone: write UTC, or Asia/Taipei") }}
{%- elif gap is not number or gap <= 0 %}
{{- exceptions.raise_compiler_error("gap_minutes: " ~ gap ~ " is not a number above 0") }}
{%- elif characters is not integer or characters < 1 %}
{{- exceptions.raise_compiler_error("document_characters: " ~ characters ~ " is not a number from 1") }}
{%- endif %}
SELECT '{{ time_zone }}' AS time_zone, CAST({{ gap }} * 60000 AS BIGINT) AS gap_ms,
       CAST({{ characters }} AS BIGINT) AS document_characters
