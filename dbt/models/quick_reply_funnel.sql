{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT organization_id, count(*) AS offers,
       count(CASE WHEN next_role = 'contact' AND next_type = 'quick_reply' THEN 1 END) AS picked,
       count(CASE WHEN next_role = 'contact' AND coalesce(next_type, '') <> 'quick_reply' THEN 1 END)
           AS typed_instead,
       count(CASE WHEN next_role IN ('user', 'bot') THEN 1 END) AS overtaken,
       count(CASE WHEN next_role IS NULL THEN 1 END) AS ended
FROM (
    SELECT organization_id, sender_role, content,
           lead(type) OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number) AS next_type,
           lead(sender_role) OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number) AS next_role
    FROM {{ ref('turns') }}
) AS t
WHERE sender_role IN ('user', 'bot') AND content LIKE '%"quick_replies":[{{ '{%' }}'
GROUP BY organization_id
